// Package templates holds the text of every file muster writes, as embedded
// templates, each fed by one typed struct.
package templates

import (
	"bytes"
	"embed"
	"fmt"
	"text/template"
)

//go:embed *.tmpl
var files embed.FS

// render executes the named template. The data must hold every field the
// template uses: a missing one is an error, never "<no value>".
func render(name string, funcs template.FuncMap, data any) ([]byte, error) {
	t, err := template.New(name).Option("missingkey=error").Funcs(funcs).ParseFS(files, name)
	if err != nil {
		return nil, fmt.Errorf("parse the template %s: %w", name, err)
	}
	var out bytes.Buffer
	if err := t.Execute(&out, data); err != nil {
		return nil, fmt.Errorf("fill the template %s: %w", name, err)
	}
	return out.Bytes(), nil
}
