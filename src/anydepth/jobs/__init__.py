"""What each command does, without the command line: one file for each, settings in, a result out."""
