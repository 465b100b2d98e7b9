// Renders one template of the chart with Go's own engine, which is helm's: JSON in ({"template":…,"data":…}), text out. For a test.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"text/template"
)

type question struct {
	Template string
	Data     map[string]interface{}
}

// What helm's function of this name does for numbers of a values file, which are floating there.
func whole(value interface{}) (int, error) {
	switch number := value.(type) {
	case float64:
		return int(number), nil
	case string:
		return strconv.Atoi(number)
	}
	return 0, fmt.Errorf("int of %T", value)
}

func main() {
	var asked question
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		panic(err)
	}
	quote := func(text string) string { return strconv.Quote(text) }
	functions := template.FuncMap{"int": whole, "quote": quote}
	parsed, err := template.New("chart").Option("missingkey=error").Funcs(functions).Parse(asked.Template)
	if err != nil {
		panic(err)
	}
	if err := parsed.Execute(os.Stdout, asked.Data); err != nil {
		panic(err)
	}
}
