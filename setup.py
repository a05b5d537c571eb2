"""The distribution: the library, its kernels, and CPU kernels compiled where a compiler exists."""

from setuptools import Extension, find_packages, setup

DOCS = ["mkdocs-material", "mkdocstrings[python]"]
HEADERS = [f"kernels/{name}.h" for name in ("isa_cpu", "vector_cpu", "vector_cpu_end")]
SWEEP = ["pandas", "pyarrow", "fsspec", "matplotlib", "rich"]

# `kernels/` is a top-level folder of the repository but never a top-level package of an
# installation: transformers users have a package of that name, which it would overwrite.
setup(
    # An sdist has no `bilinear/kernels`, which is a link to `kernels` in a checkout.
    packages=[
        *find_packages(include=["bilinear", "bilinear.*"], exclude=["bilinear.kernels"]),
        "bilinear.kernels",
    ],
    package_dir={"bilinear.kernels": "kernels"},
    package_data={
        "bilinear": ["py.typed"],
        "bilinear.page": ["*.html", "*.css", "*.js"],
        "bilinear.hub": ["metadata.json"],
        "bilinear.layer": ["native_table.json"],
        "bilinear.kernels": ["table.json"],
    },
    ext_modules=[
        Extension(
            "bilinear.kernels._grid_cpu",
            sources=["kernels/grid_cpu.c"],
            depends=["kernels/grid_cpu_body.h", *HEADERS],
            # Of Python's interface it takes what every version from 3.11 on keeps: one wheel each
            # platform.
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            py_limited_api=True,
            extra_compile_args=["-O3", "-std=gnu11", "-fno-math-errno"],
            # Without a C compiler the package still installs; the sweep then trains on PyTorch
            # ops and says so in its first line.
            optional=True,
        ),
        Extension(
            "bilinear.kernels._layer_cpu",
            sources=["kernels/layer_cpu.c"],
            depends=["kernels/layer_cpu_body.h", "kernels/exchange.h", *HEADERS],
            extra_compile_args=["-O3", "-std=gnu11", "-fno-math-errno"],
            py_limited_api=True,
            # Without it the layer runs on PyTorch's matmuls, as `bilinear.explain` says.
            optional=True,
        ),
        Extension(
            "bilinear.kernels._places",
            sources=["kernels/places.c"],
            depends=["kernels/exchange.h"],
            extra_compile_args=["-O2", "-std=gnu11"],
            py_limited_api=True,
            # Without it Python reads the tensors, in some microseconds more a call.
            optional=True,
        ),
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
    # What the layer needs; the sweep, its results and its pictures need the extra as well.
    install_requires=[
        "torch>=2.11",
        "numpy>=2",
        "einops",
        "safetensors",
        'triton>=3.6; sys_platform == "linux"',
    ],
    extras_require={
        "sweep": SWEEP,
        "s3": [*SWEEP, "s3fs"],
        "ray": [*SWEEP, "ray"],
        "completion": [*SWEEP, "argcomplete"],
        "notebook": [*SWEEP, "ipywidgets", "ipykernel"],
        "test": [
            *SWEEP,
            *DOCS,
            "argcomplete",
            "pytest",
            "pytest-benchmark",
            "hypothesis",
            "selenium",
            "ipywidgets",
            "ipykernel",
            "nbclient",
            "nbformat",
            "pytest-xdist",
            "s3fs",
            "moto[s3]",
            "flask",
            "flask-cors",
            "ray",
            # What `fuse` is tried on and beside.
            "transformers",
            "peft",
            "accelerate",
            "torchao",
            "kernels",
        ],
        "docs": DOCS,
        "dev": ["ruff", "mypy", "pandas-stubs"],
        # What the layer is timed against on a GPU (bench/measure/peers.py), gigabytes of it; each
        # asks for a PyTorch of its own, so install one at a time beside the one to be measured.
        "peers": ["liger-kernel", "quack-kernels"],
    },
)
