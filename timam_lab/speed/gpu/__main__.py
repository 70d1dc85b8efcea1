"""Beside `schedule`, because a spawned process cannot import the `__main__` of a package."""

from timam_lab.speed.gpu.schedule import main

if __name__ == "__main__":
    main()
