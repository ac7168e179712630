"""`scalerl fit`, `scalerl compare` and `scalerl backtest`: curves from anywhere in, parameters, forecasts and scores out.

    file, run directory, Prometheus range -> series -> forecaster -> text, JSON, picture
    several runs -> study.compare (A first, then B at the common A) -> table, picture
    folder of finished curves -> forecast.backtest -> table

What computes is elsewhere (`forecast`, `study`) and pure; here are files, words and pictures.
"""
