"""Run folders: settings, result store, certification that resumes, reports, exports, verification."""
