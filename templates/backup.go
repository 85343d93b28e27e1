package templates

import "text/template"

// Backup is the service that saves a snapshot of the cluster on one host, and
// the timer that starts it.
type Backup struct {
	Cluster   string // its name
	Program   string // absolute path of musterctl
	Unit      string // of the member
	Service   string // the name of the service, which the timer starts
	Args      []Argument
	Directory string // absolute path; the one place the service can write to
	Schedule  string // OnCalendar=, systemd.time(7)
}

// RenderService returns the text of the service.
func (b Backup) RenderService() ([]byte, error) {
	return render("musterd-backup.service.tmpl", template.FuncMap{"argument": quoteArgument}, b)
}

// RenderTimer returns the text of the timer.
func (b Backup) RenderTimer() ([]byte, error) {
	return render("musterd-backup.timer.tmpl", nil, b)
}
