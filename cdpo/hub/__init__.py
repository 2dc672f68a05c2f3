"""Named models and datasets: on the Hugging Face Hub, or in a local folder that is laid out like its cache.

Whoever reads gets a local folder, the snapshot of a commit, so that what loads a model or a dataset is the same code
wherever it came from. Commits are looked up by `cdpo prep`, once, and kept in `configs/hub.lock.json`.
"""
