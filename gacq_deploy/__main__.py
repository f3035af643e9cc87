"""``python -m gacq_deploy``: the command line, which is a package of its own."""

from runpy import run_module

run_module("gacq_deploy_cli", run_name="__main__")
