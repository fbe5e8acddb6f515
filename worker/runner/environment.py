"""Restore the operator's environment for runners; the first module that the fork server imports."""

from orcheo_dispatch.shared.process.plugins import let_plugins_in

let_plugins_in()
