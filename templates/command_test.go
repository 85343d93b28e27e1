package templates

import (
	"slices"
	"testing"
)

func TestReadUnitUndoesRender(t *testing.T) {
	u := exampleUnit()
	u.Args = append(u.Args,
		Argument{Flag: "odd", Value: `50% of $HOME say "\n" it's; a`},
		Argument{Flag: "cors", Value: "*", Joined: true},
		Argument{Flag: "empty", Joined: true})
	text, err := u.Render()
	if err != nil {
		t.Fatal(err)
	}
	command, settings, err := ReadUnit(string(text))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{u.Binary}
	for _, a := range u.Args {
		want = append(want, a.Words()...)
	}
	if !slices.Equal(command, want) {
		t.Errorf("command\n%q\nwant\n%q", command, want)
	}
	if !slices.Contains(settings, Setting{"Service/User", u.User}) || settings[0].Name != "Unit/Description" {
		t.Errorf("settings %q", settings)
	}
	if _, _, err := ReadUnit("[Service]\nExecStart=/bin/x 'half\n"); err == nil {
		t.Error("an open quote is accepted")
	}
}
