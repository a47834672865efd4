# SPDX-License-Identifier: Apache-2.0
"""Who may take part: authority, certificates, keys, the broker's rules, and a broker for a first try."""
