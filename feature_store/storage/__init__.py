"""Where values rest: the online and offline ports and the stores behind them."""

import os

# Delta's driver is quiet then: what it would log in dozens of lines, its errors say too. It looks when it is imported.
os.environ.setdefault("RUST_LOG", "off")
