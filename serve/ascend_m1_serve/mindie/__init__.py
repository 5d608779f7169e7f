"""What users of MindIE Service bring along: its config.json, its environment variables, its forms of requests.

Read in this order: ``fields`` (the keys of config.json as data), ``checks``, ``contradictions``, ``config``,
``environment``, ``requests``.
"""
