"""The Streamlit viewer of a store: `cdpo view`, or `cd viewer && streamlit run app.py`."""
