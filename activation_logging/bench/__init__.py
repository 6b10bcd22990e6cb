"""What logging costs: one load, put on two servers in turns.

::

    load      the prompts of one measurement, and the process that sends them
      client  ... which is this program: a streaming HTTP client, and nothing else
    servers   the servers that are compared: without the plugin, switched off, logging
    machine   what the machine is, and who else used its processors meanwhile
    compare   the turns: which server, which load, how often
    figures   ratios of paired measurements, their median and spread
    table     the figures for people
"""
