"""The commands of `fenix`, one module a theme: lifecycle (up, down, status), deploying (deploy, remove), catalogue
(get, describe), asking (plan, infer), feedback (feedback, explain). sources.py and tensors.py read what they are given,
options.py has the options that several share. The docstring of a command is its help."""
