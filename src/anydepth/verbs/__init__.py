"""The verbs of the command line: each reads its arguments, calls the library, and shows what came out."""
