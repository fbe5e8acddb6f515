"""A plugin with one node, installed where Orcheo's own command would install it."""

from __future__ import annotations

import sys
from pathlib import Path

_NAME = "orcheo-plugin-of-test"
_MODULE = "orcheo_plugin_of_test"
_FILES = {
    f"{_MODULE}/__init__.py": '''
from typing import Any

from orcheo.nodes.base import TaskNode
from orcheo.nodes.registry import NodeMetadata


class PluginNode(TaskNode):
    """A node of a plugin."""

    known: bool

    async def run(self, state, config) -> dict[str, Any]:
        return {"known": self.known, "from": "a plugin"}


def register(api) -> None:
    api.register_node(NodeMetadata(name="PluginNode", description="A node.", category="test"), PluginNode)
''',
    f"{_MODULE}/orcheo_plugin.toml": 'plugin_api_version = 1\norcheo_version = ">=0"\nexports = ["nodes"]\n',
    f"{_MODULE}-1.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {_NAME}\nVersion: 1\n",
    f"{_MODULE}-1.dist-info/entry_points.txt": f"[orcheo.plugins]\nplugin = {_MODULE}\n",
    f"{_MODULE}-1.dist-info/RECORD": f"{_MODULE}/__init__.py,,\n{_MODULE}/orcheo_plugin.toml,,\n",
}
_DESIRED = f'[[plugin]]\nname = "{_NAME}"\nsource = "{_NAME}"\nenabled = true\n'
_LOCKED = f'[[plugin]]\nname = "{_NAME}"\nversion = "1"\nplugin_api_version = 1\norcheo_version = ">=0"\n'


def install_plugin(home: Path) -> None:
    """Install it for processes that have this `HOME`; those that have loaded their plugins do not see it."""
    folder = home / ".orcheo" / "plugins"
    packages = folder / "venv" / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    files = {packages / name: text for name, text in _FILES.items()}
    for path, text in {**files, folder / "plugins.toml": _DESIRED, folder / "plugin-lock.toml": _LOCKED}.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
