"""What every script and library of the project shares and no task knows: flags, files, processes, progress."""
