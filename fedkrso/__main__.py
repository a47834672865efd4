# SPDX-License-Identifier: Apache-2.0
"""`python -m fedkrso`: the command `fedkrso`."""

from fedcore.command import main

if __name__ == "__main__":
    main()
