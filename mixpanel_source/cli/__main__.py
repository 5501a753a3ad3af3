"""`python -m mixpanel_source.cli`: the same as `mpload`."""

from mixpanel_source.cli.app import main

main()
