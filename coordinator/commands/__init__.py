# SPDX-License-Identifier: Apache-2.0
"""The commands of the coordinator: what was typed becomes a call, what comes back becomes lines."""
