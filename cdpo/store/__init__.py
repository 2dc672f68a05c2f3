"""Where artifacts live: `Store` is a folder of finished steps, published whole or not at all."""

from cdpo.store.store import Store

__all__ = ["Store"]
