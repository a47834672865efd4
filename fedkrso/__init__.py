# SPDX-License-Identifier: Apache-2.0
"""The front door: everything that a program needs which takes part in a run, leads one, or adds to what runs can do."""
