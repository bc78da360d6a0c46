"""python -m tests.notebooks.execute KERNELS NOTEBOOK OUTPUT

Runs a notebook in the folder of OUTPUT by the kernel "image" of the folder KERNELS, and writes it
with its outputs. A process of its own: nbclient leaves sockets open, of which pytest makes errors.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient


def main(kernels: str, source: str, output: str) -> None:
    """Executes every cell; raises at the first one that fails."""
    notebook = nbformat.read(source, as_version=nbformat.NO_CONVERT)
    manager = AsyncKernelManager(
        kernel_name="image",
        kernel_spec_manager=KernelSpecManager(kernel_dirs=[kernels]),
        connection_file=str(Path(kernels, "connection.json")),
    )
    resources = {"metadata": {"path": str(Path(output).parent)}}
    NotebookClient(notebook, km=manager, timeout=600, resources=resources).execute()
    nbformat.write(notebook, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
