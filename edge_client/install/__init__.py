# SPDX-License-Identifier: Apache-2.0
"""The agent as a service of its device: installed, watched, carried to a board without internet, taken away again."""
