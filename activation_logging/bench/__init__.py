"""What logging costs: one load, put on two servers in turns.

::

    load      the prompts of one measurement, and the process that sends them
      client  ... which is this program: a streaming HTTP client, and nothing else
    servers   the servers that are compared: without the plugin, switched off, logging
    machine   what the machine is, and how busy other processes kept it
    compare   the turns: which server, which load, how often
    ratios    ratios of paired measurements, their median and spread
    table     the measurements for people
"""
