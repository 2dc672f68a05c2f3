"""Where the packages lie: `pipelines/`, `configs/` and `viewer/` stand at the top and install inside `cdpo`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["cdpo", "cdpo.*"]), "cdpo.pipelines", "cdpo.configs", "cdpo.viewer"],
    package_dir={"cdpo.pipelines": "pipelines", "cdpo.configs": "configs", "cdpo.viewer": "viewer"},
    package_data={
        "cdpo.configs": ["*.yaml", "**/*.yaml"],
        "cdpo": ["py.typed"],
        "cdpo.viewer": [
            "screens/*.py",
            "*.css",
            "*.svg",
            "*.html",
            ".streamlit/config.toml",
            "README.md",
            "requirements.txt",
        ],
    },
)
