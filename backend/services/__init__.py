"""One file per use case: inspection, fitting, calibration, data sets, recipes, jobs, audit."""
