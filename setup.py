"""What pyproject.toml cannot say: folders beside the package that become part of it in a wheel.

handmim/utils/paths.py finds them in a wheel and in a checkout.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["handmim*"]), "handmim.configs", "handmim.assets"],
    package_dir={"handmim.configs": "configs", "handmim.assets": "data"},
    package_data={
        "handmim": ["py.typed"],
        "handmim.experiments": ["*.html"],
        "handmim.configs": ["**/*.yaml"],
        "handmim.assets": ["standin_right.npz", "handmim_small.safetensors", "handmim_small.md"],
    },
)
