# SPDX-License-Identifier: Apache-2.0
"""Tasks as files of a data folder, and how their examples are dealt to clients."""
