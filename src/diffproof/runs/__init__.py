"""Run folders: settings, result store, plans, certification that resumes, reports, exports, verification."""
