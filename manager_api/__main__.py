"""``python -m manager_api`` is ``manager-api``."""

from manager_api.cli import main

if __name__ == "__main__":
    main(prog_name="manager-api")
