# SPDX-License-Identifier: Apache-2.0
"""Published states fetched by HTTP, from servers that the owner names, in place of the broker."""
