"""Names and JSON texts that mean harm."""

from __future__ import annotations

from collections.abc import Mapping

NAMES: Mapping[str, str] = {
    "parent": "../../../../etc/passwd",
    "parent-with-backslashes": "..\\..\\..\\windows\\system32\\x",
    "dots": "..",
    "one-dot": ".",
    "absolute": "/etc/passwd",
    "drive": "C:\\windows\\x",
    "share": "\\\\server\\share\\x",
    "stream": "a.png::$DATA",
    "nul": "a\0b",
    "newline": "a\r\nX-Injected: 1",
    "escape": "a\x1b[2Jb",
    "device": "CON",
    "device-with-a-suffix": "nul.png",
    "port": "COM1",
    "long": "a" * 5000,
    "long-in-bytes": "\U0001f9ff" * 64,
    "right-to-left": "a\u202egnp.exe",
    "zero-width": "a\u200bb\ufeff",
    "combining": "a" + "\u0301" * 60,
    "escaped-parent": "%2e%2e%2f%2e%2e%2fx",
    "escaped-nul": "a%00b",
    "overlong": "..%c0%afx",
    "hidden": ".lock",
    "temporary": ".tmp-0123456789abcdef",
    "jobs": ".jobs",
    "recipes": "recipes",
    "format": "%s%n{0}{x.__class__}",
    "template": "{{7*7}}${7*7}",
    "query": "a' OR '1'='1",
    "shell": "a;touch executed;$(touch executed)`touch executed`",
    "trailing-dot": "a.",
    "trailing-space": "a ",
    "space": " ",
    "empty": "",
}
"""Ids and file names."""

JSON_TEXTS: Mapping[str, str] = {
    "not-a-number": '{"role_id":"a","roi_id":"b","ok_scores":[NaN]}',
    "infinite": '{"role_id":"a","roi_id":"b","ok_scores":[1e999]}',
    "deep-list": '{"role_id":"a","roi_id":"b","ok_scores":' + "[" * 100_000 + "]" * 100_000 + "}",
    "deep-object": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "only-brackets": "[" * 200_000,
    "long-integer": '{"role_id":"a","roi_id":"b","area_mm2_thr":' + "9" * 100_000 + "}",
    "long-exponent": '{"role_id":"a","roi_id":"b","area_mm2_thr":1e' + "9" * 10_000 + "}",
    "repeated-keys": '{"role_id":"a","role_id":"../x","roi_id":"b","roi_id":{}}',
    "surrogate": '{"role_id":"\\ud800","roi_id":"\\udfff"}',
    "nul": '{"role_id":"a\\u0000","roi_id":"b"}',
    "prototype": '{"role_id":"a","roi_id":"b","__proto__":{"x":1},"__class__":"y"}',
    "many-keys": "{" + ",".join(f'"k{n}":{n}' for n in range(50_000)) + "}",
    "many-scores": '{"role_id":"a","roi_id":"b","ok_scores":[' + ",".join(["0.5"] * 200_000) + "]}",
    "not-utf-8": '{"role_id":"\udcff","roi_id":"b"}',
    "byte-order-mark": '\ufeff{"role_id":"a","roi_id":"b"}',
    "list": "[]",
    "null": "null",
    "text": '"a"',
    "nothing": "",
    "comment": '{"role_id":"a"/**/,"roi_id":"b"}',
    "wrong-types": '{"role_id":{"$gt":""},"roi_id":[1],"mm_per_px":"0.2; DROP","ok_scores":"x","labels":5}',
}
"""Bodies."""
