"Time series: a forecaster and a detector made of few-call students."
