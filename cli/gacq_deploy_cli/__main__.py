"""``python -m gacq_deploy_cli``, which ``python -m gacq_deploy`` also runs."""

from gacq_deploy_cli.entry import main

main()
