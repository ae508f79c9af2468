"""The commands of `fenix`, one module a theme: lifecycle (up, down, status), catalogue (get, describe), deploying
(deploy, remove), asking (plan, infer). Each has `register(app)`; options shared by several are in options.py."""
