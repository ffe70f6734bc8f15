# Two commands do everything on a machine with Python 3.10+ and make: `make run`, `make test`.
