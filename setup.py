"""What the package is called and what it needs; constraints.txt narrows what those need in turn."""

from setuptools import find_packages, setup

# PyTorch's own files in, and modules out. onnx2torch imports torchvision, which fits one version of torch only.
TORCH = ["torch>=2.6,<3", "torchvision>=0.21,<1", "onnx2torch>=1.5.15,<2"]
POSTGRESQL = "psycopg[binary]>=3.1,<4"
PYMOO = "pymoo>=0.6.1,<0.7"
VEGA = "vl-convert-python>=1.7,<2"
# 2024.8 is the last for Python 3.9. Its arrays and data frames, which want other numpy and pandas, are not asked for.
DASK = "distributed>=2024.8,<2027"
SUBMITIT = "submitit>=1.5,<2"

setup(
    name="gcp",
    version="0.1.0",
    description="Global channel pruning of GluonCV networks with Apache MXNet",
    packages=find_packages(include=["gcp", "gcp.*"]),
    package_data={"gcp.data": ["fashion_mnist/*"], "gcp.report": ["assets/*"]},
    # mxnet and gluoncv import distutils, which Python 3.12 no longer has.
    python_requires=">=3.9,<3.12",
    install_requires=[
        "mxnet==1.9.1",
        "gluoncv==0.10.5.post0",
        # mxnet reads np.bool at import, which numpy 1.24 took away; 1.23.5 is the first for Python 3.11.
        "numpy==1.23.5",
        # onnx 1.19 took away what MXNet's exporter reads.
        "onnx==1.18.0",
        "onnxruntime>=1.17,<2",
        # Checkpoints of PyTorch, without PyTorch.
        "safetensors>=0.4.3,<1",
        # 4.12 needs numpy 2. The headless build will not do: gluoncv asks for this one by name.
        "opencv-python>=4.5.5,<4.12",
        "pandas>=2.0,<3",
        "matplotlib>=3.7,<3.11",
        # The first whose placing of names is the same each time.
        "adjustText>=1.4,<2",
        "scipy>=1.12,<1.16",
        "scikit-learn>=1.3,<1.8",
        "optuna>=4.2,<6",
        "sqlalchemy>=2.0,<3",
        "pydantic>=2.5,<3",
        # Lets pydantic read annotations such as `int | None` under Python 3.9.
        "eval-type-backport>=0.2; python_version < '3.10'",
        "pyyaml>=6.0,<7",
        "filelock>=3.12,<5",
        "threadpoolctl>=3.0,<4",
        "psutil>=5.9,<8",
        "tqdm>=4.66,<5",
        "tabulate>=0.9,<1",
        "jinja2>=3.1,<4",
    ],
    extras_require={
        "test": [
            "pytest>=8.0,<10",
            # A process for each core: scripts/test.sh.
            "pytest-xdist>=3.6,<4",
            "hypothesis>=6.100,<7",
            # Its formatting changes from one minor version to the next, and a test checks it.
            "ruff>=0.17,<0.18",
            "import-linter>=2.0,<3",
            # A test that hangs fails, and says where, instead of holding up all others.
            "pytest-timeout>=2.3,<3",
            # With PostgreSQL's own programs, where they are, tests search on a server.
            POSTGRESQL,
            PYMOO,
            VEGA,
            # With a Chromium, where there is one, tests use the results' page as its readers do.
            "playwright>=1.45,<2",
            # Sweeps on clusters, which tests start on this machine.
            DASK,
            SUBMITIT,
        ],
        "torch": TORCH,
        # What scripts/coverage.py and comparisons with others need; scripts/peers.sh installs it.
        "peers": [*TORCH, "timm>=1.0,<2", "onnxscript>=0.3,<1", "torch-pruning>=1.6,<2"],
        # For scripts/reproduce.py --on dask://... and --on slurm.
        "dask": [DASK],
        "slurm": [SUBMITIT],
        # For `search.storage` on a server that several machines share.
        "search-server": [POSTGRESQL, "pymysql>=1.1,<2"],
        # For architecture search by `solver: nsga2`.
        "pareto": [PYMOO],
        # The charts of scripts/report.py --html: Vega-Lite's script, which goes into the page.
        "page": [VEGA],
        # For `tensorboard: true` in a configuration.
        "tensorboard": ["tensorboard>=2.15,<3"],
    },
)
