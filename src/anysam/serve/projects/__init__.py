"""Projects that stay: images, categories, annotations and their history in one database. No models, no page.

tables.py the tables; database.py opens them in SQLite or PostgreSQL, and has all that differs between the two; items.py
what is kept and how it is checked; operations.py changes of projects, categories and images, annotations.py those of
annotations, history.py the record of every change. exporting.py and importing.py files of other programs: naming.py
finds their images, mask_files.py reads them, archives.py unpacks zip files from strangers. routes.py,
annotation_routes.py and transfers.py the HTTP API, bodies.py and answers.py what they take and give; errors.py what can
go wrong.

    projects = open_projects(None)
    project = create_project(projects, "Cats")
"""
