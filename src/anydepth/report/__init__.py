"""What a trace looks like: charts, and one HTML page that holds them all.

`source` says what is read of a trace, `rows` turns it into the rows behind each chart, `words` into sentences;
`theme` holds the colours, `charts` draws with Altair, `page` writes the report. Nothing is imported until asked for.
"""
