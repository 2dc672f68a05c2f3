"""Where the packages lie: `pipelines/` and `configs/` stand at the top of the checkout and install inside `cdpo`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["cdpo", "cdpo.*"]), "cdpo.pipelines", "cdpo.configs"],
    package_dir={"cdpo.pipelines": "pipelines", "cdpo.configs": "configs"},
    package_data={"cdpo.configs": ["*.yaml", "**/*.yaml"], "cdpo": ["py.typed"]},
)
