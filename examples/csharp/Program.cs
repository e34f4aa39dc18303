// A console client of the ROI inspector: learns a folder of good images, sets the threshold, inspects a folder.
//
//     RoiClient http://127.0.0.1:8000 fit       good/   --roi inspection-1 --mm-per-px 0.2
//     RoiClient http://127.0.0.1:8000 calibrate         --roi inspection-1 --mm-per-px 0.2
//     RoiClient http://127.0.0.1:8000 inspect   parts/  --roi inspection-1 --mm-per-px 0.2
//
// One file, C# 7, nothing beyond the framework; it compiles with Mono's mcs and with any .NET SDK.
// Exit code: 0 all good, 1 an error, 2 at least one part is ng.

using System;
using System.Collections.Generic;
using System.Globalization;
using System.IO;
using System.Linq;
using System.Net.Http;
using System.Net.Http.Headers;
using System.Text;
using System.Threading;
using System.Threading.Tasks;

namespace RoiInspectorExample
{
    internal static class Program
    {
        private const int Good = 0;
        private const int Failed = 1;
        private const int Defective = 2;

        private const string Usage =
            "usage: RoiClient URL fit FOLDER | calibrate | inspect FOLDER\n" +
            "       [--role Inspection] [--roi inspection-1] [--recipe default] [--mm-per-px 0.2]";

        private static int Main(string[] arguments)
        {
            Console.OutputEncoding = new UTF8Encoding(false);
            try
            {
                return RunAsync(arguments).GetAwaiter().GetResult();
            }
            catch (ServiceException error)
            {
                Console.Error.WriteLine("{0} ({1}, request {2})", error.Message, error.Code, error.RequestId);
            }
            catch (HttpRequestException error)
            {
                Console.Error.WriteLine("The service cannot be reached: {0}", error.GetBaseException().Message);
            }
            catch (Exception error) when (error is ArgumentException || error is IOException)
            {
                Console.Error.WriteLine(error.Message);
            }
            return Failed;
        }

        private static async Task<int> RunAsync(string[] arguments)
        {
            var words = new List<string>();
            var options = new Dictionary<string, string>
            {
                { "--role", "Inspection" }, { "--roi", "inspection-1" }, { "--recipe", "" }, { "--mm-per-px", "0.2" },
            };
            for (var n = 0; n < arguments.Length; n++)
            {
                if (!arguments[n].StartsWith("--", StringComparison.Ordinal))
                {
                    words.Add(arguments[n]);
                }
                else if (options.ContainsKey(arguments[n]) && n + 1 < arguments.Length)
                {
                    options[arguments[n]] = arguments[++n];
                }
                else
                {
                    throw new ArgumentException(Usage);
                }
            }
            var command = words.Count > 1 ? words[1] : "";
            if (words.Count != (command == "calibrate" ? 2 : 3))
            {
                throw new ArgumentException(Usage);
            }

            var roi = new Roi
            {
                RoleId = options["--role"],
                RoiId = options["--roi"],
                MmPerPx = double.Parse(options["--mm-per-px"], CultureInfo.InvariantCulture),
            };
            using (var client = new RoiInspectorClient(new Uri(words[0]), options["--recipe"]))
            {
                switch (command)
                {
                    case "fit":
                        return await FitAsync(client, roi, words[2]).ConfigureAwait(false);
                    case "calibrate":
                        return await CalibrateAsync(client, roi).ConfigureAwait(false);
                    case "inspect":
                        return await InspectAsync(client, roi, words[2]).ConfigureAwait(false);
                    default:
                        throw new ArgumentException(Usage);
                }
            }
        }

        private static async Task<int> FitAsync(RoiInspectorClient client, Roi roi, string folder)
        {
            var fit = await client.FitAsync(roi, ImagesIn(folder), PrintProgress, CancellationToken.None)
                .ConfigureAwait(false);
            Console.WriteLine(
                "learned {0} images, {1} of {2} embeddings kept",
                fit.GetInt("n_ok_total"), fit.GetInt("coreset_size"), fit.GetInt("n_embeddings"));
            PrintWarnings(fit);
            return Good;
        }

        private static async Task<int> CalibrateAsync(RoiInspectorClient client, Roi roi)
        {
            var calibration = await client.CalibrateAsync(roi, CancellationToken.None).ConfigureAwait(false);
            Console.WriteLine(
                "threshold {0} from {1} good parts; at most {2} % of good parts are rejected (95 % confidence)",
                Shown(calibration.GetDouble("threshold"), "0.0000"), calibration.GetInt("n_ok"),
                Shown(100 * calibration.GetDouble("false_alarm_rate_upper_95"), "0.0"));
            PrintWarnings(calibration);
            return Good;
        }

        private static async Task<int> InspectAsync(RoiInspectorClient client, Roi roi, string folder)
        {
            var outcome = Good;
            foreach (var path in ImagesIn(folder))
            {
                var found = await client.InferAsync(roi, path, CancellationToken.None).ConfigureAwait(false);
                var decision = found.GetString("decision");  // null: not calibrated, there is only a score
                Console.WriteLine(
                    "{0} score {1} {2}", decision ?? "--", Shown(found.GetDouble("score"), "0.0000"),
                    Path.GetFileName(path));
                foreach (var region in found.GetObjects("regions"))
                {
                    Console.WriteLine(
                        "   {0} mm² at x {1}, y {2}, {3} × {4} px", Shown(region.GetDouble("area_mm2"), "0.00"),
                        region.GetInt("x"), region.GetInt("y"), region.GetInt("w"), region.GetInt("h"));
                }
                if (decision == "ng")
                {
                    outcome = Defective;
                }
            }
            return outcome;
        }

        private static List<string> ImagesIn(string folder)
        {
            var suffixes = new[] { ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff" };
            var paths = Directory.GetFiles(folder)
                .Where(path => suffixes.Contains(Path.GetExtension(path).ToLowerInvariant()))
                .OrderBy(path => path, StringComparer.Ordinal)
                .ToList();
            if (paths.Count == 0)
            {
                throw new ArgumentException("There are no images in " + folder);
            }
            return paths;
        }

        private static void PrintProgress(int done, int total, double? secondsLeft)
        {
            var left = secondsLeft.HasValue ? ", " + Shown(secondsLeft.Value, "0") + " s left" : "";
            Console.WriteLine("{0} of {1} steps{2}", done, total, left);
        }

        private static void PrintWarnings(JsonObject answer)
        {
            foreach (var warning in answer.GetStrings("warnings"))
            {
                Console.WriteLine("note: " + warning);
            }
        }

        private static string Shown(double value, string format)
        {
            return value.ToString(format, CultureInfo.InvariantCulture);
        }
    }

    /// <summary>Which region of interest, and its scale.</summary>
    internal sealed class Roi
    {
        public string RoleId;
        public string RoiId;
        public double MmPerPx;
    }

    /// <summary>An error that the service has answered with: its sentence, and its stable code.</summary>
    internal sealed class ServiceException : Exception
    {
        public ServiceException(string sentence, string code, string requestId) : base(sentence)
        {
            Code = code;
            RequestId = requestId;
        }

        public string Code { get; private set; }

        public string RequestId { get; private set; }
    }

    /// <summary>Calls the service.</summary>
    internal sealed class RoiInspectorClient : IDisposable
    {
        private static readonly TimeSpan PollInterval = TimeSpan.FromMilliseconds(200);

        private readonly HttpClient _http;

        public RoiInspectorClient(Uri service, string recipeId)
        {
            // Fits run as jobs, so no single call takes long.
            _http = new HttpClient { BaseAddress = service, Timeout = TimeSpan.FromMinutes(2) };
            if (!string.IsNullOrEmpty(recipeId))
            {
                _http.DefaultRequestHeaders.Add("X-Recipe-Id", recipeId);
            }
        }

        public void Dispose()
        {
            _http.Dispose();
        }

        /// <summary>Learns good images as a background job, and returns what /fit_ok answers.</summary>
        public async Task<JsonObject> FitAsync(
            Roi roi, IEnumerable<string> paths, Action<int, int, double?> progress, CancellationToken cancellation)
        {
            var form = FormOf(roi);
            foreach (var path in paths)
            {
                form.Add(ImagePart(path), "images", Path.GetFileName(path));
            }
            var request = new HttpRequestMessage(HttpMethod.Post, "fit_ok") { Content = form };
            request.Headers.Add("Prefer", "respond-async");
            var started = await SendAsync(request, cancellation).ConfigureAwait(false);
            var statusUrl = started.GetString("status_url");

            var told = -1;
            while (true)
            {
                var job = await SendAsync(new HttpRequestMessage(HttpMethod.Get, statusUrl), cancellation)
                    .ConfigureAwait(false);
                var done = job.GetInt("done");
                if (done != told && job.GetInt("total") > 0)
                {
                    told = done;
                    progress(done, job.GetInt("total"), job.GetNullableDouble("eta_s"));
                }
                switch (job.GetString("state"))
                {
                    case "queued":
                    case "running":
                        await Task.Delay(PollInterval, cancellation).ConfigureAwait(false);
                        break;
                    case "done":
                        return job.GetObject("result");
                    case "failed":
                        var error = job.GetObject("error");
                        throw new ServiceException(
                            error.GetString("error"), error.GetString("code"), started.GetString("request_id"));
                    default:  // cancelled, or lost with the service's process: nothing was learned
                        throw new ServiceException(
                            "The fit did not end: it is " + job.GetString("state") + ". Start it again.",
                            "job_" + job.GetString("state"), started.GetString("request_id"));
                }
            }
        }

        /// <summary>Sets the threshold from the scores that the service measured itself at the fit.</summary>
        public Task<JsonObject> CalibrateAsync(Roi roi, CancellationToken cancellation)
        {
            var body =
                "{\"role_id\":" + Json.Quote(roi.RoleId) +
                ",\"roi_id\":" + Json.Quote(roi.RoiId) +
                ",\"model_key\":" + Json.Quote(roi.RoiId) +
                ",\"mm_per_px\":" + roi.MmPerPx.ToString("R", CultureInfo.InvariantCulture) + "}";
            var request = new HttpRequestMessage(HttpMethod.Post, "calibrate_ng")
            {
                Content = new StringContent(body, Encoding.UTF8, "application/json"),
            };
            return SendAsync(request, cancellation);
        }

        /// <summary>Inspects one image, and returns what /infer answers.</summary>
        public Task<JsonObject> InferAsync(Roi roi, string path, CancellationToken cancellation)
        {
            var form = FormOf(roi);
            form.Add(new StringContent("none"), "heatmap");
            form.Add(ImagePart(path), "image", Path.GetFileName(path));
            return SendAsync(new HttpRequestMessage(HttpMethod.Post, "infer") { Content = form }, cancellation);
        }

        private static MultipartFormDataContent FormOf(Roi roi)
        {
            return new MultipartFormDataContent
            {
                { new StringContent(roi.RoleId), "role_id" },
                { new StringContent(roi.RoiId), "roi_id" },
                { new StringContent(roi.RoiId), "model_key" },
                { new StringContent(roi.MmPerPx.ToString("R", CultureInfo.InvariantCulture)), "mm_per_px" },
            };
        }

        private static ByteArrayContent ImagePart(string path)
        {
            var content = new ByteArrayContent(File.ReadAllBytes(path));
            content.Headers.ContentType = new MediaTypeHeaderValue("application/octet-stream");
            return content;
        }

        private async Task<JsonObject> SendAsync(HttpRequestMessage request, CancellationToken cancellation)
        {
            request.Headers.Add("X-Request-Id", Guid.NewGuid().ToString());
            using (request)
            using (var response = await _http.SendAsync(request, cancellation).ConfigureAwait(false))
            {
                var text = await response.Content.ReadAsStringAsync().ConfigureAwait(false);
                var answer = Json.ParseObject(text);
                if (response.IsSuccessStatusCode)
                {
                    return answer;
                }
                throw new ServiceException(
                    answer.GetString("error"), answer.GetString("code"), answer.GetString("request_id"));
            }
        }
    }

    /// <summary>The members of a JSON object, read as the types that the caller expects.</summary>
    internal sealed class JsonObject
    {
        private readonly Dictionary<string, object> _members;

        public JsonObject(Dictionary<string, object> members)
        {
            _members = members;
        }

        public string GetString(string name)
        {
            return (string)Get(name);
        }

        public double GetDouble(string name)
        {
            return (double)Get(name);
        }

        public double? GetNullableDouble(string name)
        {
            return (double?)Get(name);
        }

        public int GetInt(string name)
        {
            return checked((int)GetDouble(name));
        }

        public JsonObject GetObject(string name)
        {
            return (JsonObject)Get(name);
        }

        public IEnumerable<JsonObject> GetObjects(string name)
        {
            return ((List<object>)Get(name)).Cast<JsonObject>();
        }

        public IEnumerable<string> GetStrings(string name)
        {
            return ((List<object>)Get(name)).Cast<string>();
        }

        private object Get(string name)
        {
            object value;
            if (!_members.TryGetValue(name, out value))
            {
                throw new IOException("The answer has no member " + name);
            }
            return value;
        }
    }

    /// <summary>As much of JSON as the answers need: no one parser comes with Mono, .NET Framework and .NET.</summary>
    internal sealed class Json
    {
        private readonly string _text;
        private int _at;

        private Json(string text)
        {
            _text = text;
        }

        public static JsonObject ParseObject(string text)
        {
            var parser = new Json(text);
            var value = parser.ReadValue() as JsonObject;
            if (value == null || parser.Peek() != '\0')
            {
                throw new IOException("The answer is not a JSON object. Is this the address of the service?");
            }
            return value;
        }

        public static string Quote(string text)
        {
            var quoted = new StringBuilder("\"");
            foreach (var character in text)
            {
                if (character == '"' || character == '\\' || character < ' ')
                {
                    quoted.AppendFormat(CultureInfo.InvariantCulture, "\\u{0:x4}", (int)character);
                }
                else
                {
                    quoted.Append(character);
                }
            }
            return quoted.Append('"').ToString();
        }

        private object ReadValue()
        {
            switch (Peek())
            {
                case '{':
                    return ReadObject();
                case '[':
                    return ReadArray();
                case '"':
                    return ReadString();
                case 't':
                    return ReadWord("true", true);
                case 'f':
                    return ReadWord("false", false);
                case 'n':
                    return ReadWord("null", null);
                default:
                    return ReadNumber();
            }
        }

        private JsonObject ReadObject()
        {
            var members = new Dictionary<string, object>();
            Expect('{');
            while (Peek() != '}')
            {
                if (members.Count > 0)
                {
                    Expect(',');
                    Peek();
                }
                var name = ReadString();
                Expect(':');
                members.Add(name, ReadValue());
            }
            Expect('}');
            return new JsonObject(members);
        }

        private List<object> ReadArray()
        {
            var items = new List<object>();
            Expect('[');
            while (Peek() != ']')
            {
                if (items.Count > 0)
                {
                    Expect(',');
                }
                items.Add(ReadValue());
            }
            Expect(']');
            return items;
        }

        private string ReadString()
        {
            var read = new StringBuilder();
            Expect('"');
            while (true)
            {
                var character = Next();
                if (character == '"')
                {
                    return read.ToString();
                }
                read.Append(character == '\\' ? ReadEscape() : character);
            }
        }

        private char ReadEscape()
        {
            var character = Next();
            if (character == 'u')
            {
                var digits = new string(new[] { Next(), Next(), Next(), Next() });
                return (char)int.Parse(digits, NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture);
            }
            var at = "bfnrt".IndexOf(character);
            return at < 0 ? character : "\b\f\n\r\t"[at];
        }

        private double ReadNumber()
        {
            var start = _at;
            while (_at < _text.Length && "+-.eE0123456789".IndexOf(_text[_at]) >= 0)
            {
                _at++;
            }
            double value;
            var token = _text.Substring(start, _at - start);
            if (!double.TryParse(token, NumberStyles.Float, CultureInfo.InvariantCulture, out value))
            {
                throw Broken();
            }
            return value;
        }

        private object ReadWord(string word, object value)
        {
            foreach (var expected in word)
            {
                if (Next() != expected)
                {
                    throw Broken();
                }
            }
            return value;
        }

        private char Peek()
        {
            while (_at < _text.Length && " \t\r\n".IndexOf(_text[_at]) >= 0)
            {
                _at++;
            }
            return _at < _text.Length ? _text[_at] : '\0';
        }

        private char Next()
        {
            if (_at == _text.Length)
            {
                throw Broken();
            }
            return _text[_at++];
        }

        private void Expect(char character)
        {
            if (Peek() != character)
            {
                throw Broken();
            }
            _at++;
        }

        private IOException Broken()
        {
            return new IOException("The answer is not valid JSON at character " + _at);
        }
    }
}
