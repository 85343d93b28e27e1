package templates

import (
	"strconv"
	"text/template"
)

// Inventory is a starter inventory.
type Inventory struct {
	Cluster      string
	User         string // of every host; empty for ssh's own choice
	Port         int    // of every host; 0 for ssh's own choice
	IdentityFile string // of every host; may be empty
	Controllers  []Controller
}

// Controller is one host of a starter inventory.
type Controller struct {
	Address string
	User    string // when it differs between hosts
	Port    int    // when it differs between hosts
}

// Render returns the inventory as YAML with comments for its reader.
func (i Inventory) Render() ([]byte, error) {
	return render("inventory.yaml.tmpl", template.FuncMap{"quote": strconv.Quote}, i)
}
