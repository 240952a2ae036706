"""The one exception that means "what you gave cannot be used"."""


class InputError(ValueError):
    """What the user gave (a flag, a file, a folder) cannot be used.

    The message is one line that names the flag or file, what was given and what is allowed. Libraries
    raise it; scripts print it and exit with status 2 (`img2img_recon.support.cli.run_script`).
    """
