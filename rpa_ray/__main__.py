"""The command line as ``python -m rpa_ray``, for a Python whose scripts are not on the path."""

from rpa_ray.cli import main

if __name__ == "__main__":
    main()
