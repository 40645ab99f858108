"""The subcommands of `fxpar`, one a module, each a click command named `command`. None imports torch before it runs."""
