"""Imported first by the fork server of a worker: gives runners the environment that the operator chose."""

from orcheo_dispatch.shared.process.plugins import let_plugins_in

let_plugins_in()
