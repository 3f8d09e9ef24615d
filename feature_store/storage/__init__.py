"""Where values rest: the online and offline ports and the stores behind them."""
