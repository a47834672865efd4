# SPDX-License-Identifier: Apache-2.0
"""What a folder of runs came to: tables, plots, who is better than whom."""
